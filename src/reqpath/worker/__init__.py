"""What runs inside the app's process: it stamps, and appends one record per request to the spool.

Nothing here starts a thread, opens a network connection, waits for a lock that another request can hold, or
raises into the app.
"""
