"""Makes the workloads' table anew: `python -m workloads.fill`."""

from __future__ import annotations

import pymysql

from workloads.database import ROWS, read_settings


def fill() -> None:
    """Make the table, with the same rows each time."""
    with pymysql.connect(**read_settings()) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS workload_item")
        cursor.execute("CREATE TABLE workload_item (id INT PRIMARY KEY, name VARCHAR(64), price INT)")
        cursor.executemany(
            "INSERT INTO workload_item VALUES (%s, %s, %s)",
            [(number, f"item {number}", number * 7) for number in range(ROWS)],
        )


if __name__ == "__main__":
    fill()
