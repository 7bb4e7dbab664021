"""Fills the shop with the same goods, customers, orders and reviews each time: `flask --app shop init-db`."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from shop import database

PRODUCTS = 240
CUSTOMERS = 400
ORDERS = 4_000
REVIEWS = 6_000

CATEGORIES = ("Black tea", "Green tea", "Oolong", "White tea", "Herbal", "Teaware")
ORIGINS = (
    "Assam",
    "Darjeeling",
    "Nilgiri",
    "Yunnan",
    "Fujian",
    "Uji",
    "Shizuoka",
    "Kandy",
    "Alishan",
    "Jeju",
)
KINDS = ("First Flush", "Second Flush", "Breakfast", "Reserve", "Spring Picking", "Estate", "Blend", "Smoked")
WARE = ("Teapot", "Kettle", "Gaiwan", "Strainer", "Caddy", "Tasting Cup", "Whisk", "Tray")
NOTES = (
    "malt",
    "honey",
    "hay",
    "orchid",
    "toast",
    "plum",
    "citrus",
    "pine smoke",
    "cocoa",
    "seaweed",
    "pepper",
)
GIVEN = ("Ada", "Bram", "Chiara", "Dilip", "Edda", "Femi", "Greta", "Hana", "Ivo", "Jun", "Kofi", "Lena")
FAMILY = ("Abe", "Brandt", "Costa", "Dube", "Eriksen", "Fofana", "Grau", "Horvat", "Ito", "Jansen", "Kaya")
CITIES = ("Aarhus", "Bremen", "Cork", "Dijon", "Evora", "Fez", "Ghent", "Haifa", "Izmir", "Jena", "Kyoto")
REMARKS = (
    "I drink it every morning before work.",
    "The second infusion is better than the first.",
    "Arrived quickly and well packed.",
    "A little too bitter when brewed above eighty degrees.",
    "My grandmother asked for another tin.",
    "Not what I expected from the picture, but pleasant.",
    "The leaves are large and whole, hardly any dust.",
    "I would buy it again if it were cheaper.",
    "Holds its flavour for months in a closed caddy.",
    "It goes well with lemon cake.",
)


@click.command("init-db")
@with_appcontext
def init_db() -> None:
    """Create the shop's database, tables and goods."""
    settings: database.Settings = current_app.config["DATABASE"]
    name = settings["database"]
    with database.connect(settings, create=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4")
        connection.select_db(name)
        for statement in (Path(__file__).parent / "schema.sql").read_text().split(";\n"):
            if statement.strip():
                cursor.execute(statement)
        connection.begin()
        for sql, rows in _build_tables(random.Random(1)):
            cursor.executemany(sql, rows)
        connection.commit()
    click.echo(f"{name}: {PRODUCTS} products, {ORDERS} orders, {REVIEWS} reviews")


def _build_tables(dice: random.Random) -> Iterator[tuple[str, list[tuple[object, ...]]]]:
    yield "INSERT INTO category VALUES (%s, %s)", list(enumerate(CATEGORIES, 1))
    products = [_build_product(number, dice) for number in range(1, PRODUCTS + 1)]
    yield "INSERT INTO product VALUES (%s, %s, %s, %s, %s, %s, %s)", list(products)
    yield (
        "INSERT INTO customer VALUES (%s, %s, %s)",
        [(number, _name_someone(dice), dice.choice(CITIES)) for number in range(1, CUSTOMERS + 1)],
    )
    first_day = datetime.date(2025, 1, 1)
    orders: list[tuple[object, ...]] = []
    lines: list[tuple[object, ...]] = []
    for order in range(1, ORDERS + 1):
        orders.append((order, dice.randint(1, CUSTOMERS), first_day + datetime.timedelta(order // 12)))
        lines.extend(
            (order, product + 1, dice.randint(1, 3), products[product][4])
            for product in sorted(dice.sample(range(PRODUCTS), dice.randint(1, 4)))
        )
    yield "INSERT INTO customer_order VALUES (%s, %s, %s)", orders
    yield "INSERT INTO order_line VALUES (%s, %s, %s, %s)", lines
    yield (
        "INSERT INTO review (product_id, author, stars, body) VALUES (%s, %s, %s, %s)",
        [
            (
                dice.randint(1, PRODUCTS),
                _name_someone(dice),
                dice.choice((2, 3, 4, 4, 5, 5)),
                f"Notes of {dice.choice(NOTES)} and {dice.choice(NOTES)}. "
                + " ".join(dice.sample(REMARKS, 4)),
            )
            for _ in range(REVIEWS)
        ],
    )


def _build_product(number: int, dice: random.Random) -> tuple[int, int, str, str, int, int, int]:
    category = dice.randint(1, len(CATEGORIES))
    origin = dice.choice(ORIGINS)
    if CATEGORIES[category - 1] == "Teaware":
        name, cups = f"{origin} {dice.choice(WARE)} No. {number}", 0
        description = f"Made by hand near {origin}. Each piece differs a little in colour and weight."
    else:
        name, cups = f"{origin} {dice.choice(KINDS)} No. {number}", dice.choice((20, 40, 80))
        description = f"Notes of {dice.choice(NOTES)}, {dice.choice(NOTES)} and {dice.choice(NOTES)}."
    return number, category, name, description, dice.randint(350, 6_900), cups, dice.randint(0, 200)


def _name_someone(dice: random.Random) -> str:
    return f"{dice.choice(GIVEN)} {dice.choice(FAMILY)}"
