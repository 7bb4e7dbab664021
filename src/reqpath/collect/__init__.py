"""What runs beside the app: takes nginx's log lines into the spool, and joins the records of one request."""
