"""The shop's pages."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import statistics
from collections.abc import Iterator

import pymysql.cursors
from flask import Blueprint, Response, abort, current_app, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from shop.database import Row, connect, fetch_all, fetch_one, get_connection

blueprint = Blueprint("shop", __name__)


@blueprint.get("/health")
def health() -> str:
    """Tell a load balancer that this worker serves."""
    return "ok\n"


@blueprint.get("/")
def catalogue() -> str:
    """Show what there is: the categories, what sells best, what customers say."""
    return render_template(
        "catalogue.html",
        categories=fetch_all(
            "SELECT category.id, category.name, COUNT(*) AS products FROM category"
            " JOIN product ON product.category_id = category.id GROUP BY category.id, category.name"
            " ORDER BY category.id"
        ),
        bestsellers=fetch_all(
            "SELECT product.id, product.name, product.price_cents, SUM(quantity) AS sold FROM order_line"
            " JOIN product ON product.id = product_id WHERE order_id > %s"
            " GROUP BY product.id, product.name, product.price_cents ORDER BY sold DESC, product.id LIMIT 24",
            (3_500,),
        ),
        reviews=fetch_all(
            "SELECT product_id, author, stars, body FROM review WHERE stars = %s ORDER BY id DESC LIMIT 6",
            (5,),
        ),
    )


@blueprint.get("/products/<int:product_id>")
def product(product_id: int) -> str:
    """Show one product with its reviews."""
    return render_template(
        "product.html",
        product=_find_product(product_id),
        sold=fetch_one("SELECT COUNT(*) AS orders FROM order_line WHERE product_id = %s", (product_id,)),
        reviews=fetch_all(
            "SELECT author, stars, body FROM review WHERE product_id = %s ORDER BY id DESC LIMIT 10",
            (product_id,),
        ),
    )


@blueprint.get("/search")
def search() -> str:
    """Search descriptions and reviews for a word, anywhere in the text: no index can help with that."""
    word = request.args.get("q", "")[:40]
    found = fetch_all(
        "SELECT product.id, product.name, product.price_cents, COUNT(*) AS mentions, AVG(stars) AS stars"
        " FROM review JOIN product ON product.id = product_id"
        " WHERE LOWER(CONCAT(body, ' ', description)) LIKE %s"
        " GROUP BY product.id, product.name, product.price_cents ORDER BY mentions DESC, stars DESC LIMIT 20",
        (f"%{word.lower()}%",),
    )
    return render_template("search.html", word=word, found=found)


@blueprint.get("/customers/<int:customer_id>/orders")
def orders(customer_id: int) -> str:
    """Show a customer's orders; asks for each line by itself, as an ORM's lazy loading would."""
    customer = fetch_one("SELECT id, name, city FROM customer WHERE id = %s", (customer_id,))
    if customer is None:
        abort(404)
    placed = fetch_all(
        "SELECT id, ordered_on FROM customer_order WHERE customer_id = %s ORDER BY id DESC", (customer_id,)
    )
    for order in placed:
        order["lines"] = fetch_all("SELECT * FROM order_line WHERE order_id = %s", (order["id"],))
        for line in order["lines"]:
            line["product"] = fetch_one("SELECT name FROM product WHERE id = %s", (line["product_id"],))
    return render_template("orders.html", customer=customer, orders=placed)


@blueprint.get("/reports/prices")
def price_report() -> dict[str, object]:
    """Tell how sure the mean price of each category is, by drawing samples again and again."""
    dice = random.Random(7)
    prices: dict[int, list[int]] = {}
    for row in fetch_all("SELECT category_id, price_cents FROM product"):
        prices.setdefault(row["category_id"], []).append(row["price_cents"])
    report: dict[str, object] = {}
    for category_id, cents in sorted(prices.items()):
        means = sorted(statistics.fmean(dice.choices(cents, k=len(cents))) for _ in range(200))
        report[str(category_id)] = {
            "mean": round(statistics.fmean(cents)),
            "from": round(means[5]),
            "to": round(means[194]),
        }
    return report


@blueprint.get("/orders.csv")
def export_orders() -> Response:
    """Stream every order line as CSV, row by row from the database to the client."""
    settings = current_app.config["DATABASE"]

    def write_rows() -> Iterator[str]:
        # A connection of its own: until the last row is read no other statement may use it.
        connection = connect(settings)
        try:
            with connection.cursor(pymysql.cursors.SSCursor) as cursor:
                cursor.execute(
                    "SELECT order_id, ordered_on, product_id, quantity, price_cents FROM order_line"
                    " JOIN customer_order ON customer_order.id = order_id ORDER BY order_id, product_id"
                )
                yield "order,date,product,quantity,price_cents\r\n"
                while rows := cursor.fetchmany(500):
                    text = io.StringIO()
                    csv.writer(text).writerows(rows)
                    yield text.getvalue()
        finally:
            connection.close()

    return Response(write_rows(), mimetype="text/csv")


@blueprint.post("/products/<int:product_id>/reviews")
def add_review(product_id: int) -> AnyResponse:
    """Keep a customer's review."""
    _find_product(product_id)
    form = request.form
    connection = get_connection()
    connection.begin()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO review (product_id, author, stars, body) VALUES (%s, %s, %s, %s)",
            (product_id, form["author"][:60], form.get("stars", 3, int), form["body"][:600]),
        )
    connection.commit()
    return redirect(url_for("shop.product", product_id=product_id), 303)


@blueprint.post("/products/<int:product_id>/photos")
def add_photo(product_id: int) -> tuple[dict[str, object], int]:
    """Take a customer's photo and keep its fingerprint."""
    _find_product(product_id)
    photo = request.files["photo"].read()
    fingerprint = hashlib.sha256(photo).hexdigest()
    connection = get_connection()
    connection.begin()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO photo (product_id, bytes, sha256) VALUES (%s, %s, %s)",
            (product_id, len(photo), fingerprint),
        )
    connection.commit()
    return {"bytes": len(photo), "sha256": fingerprint}, 201


@blueprint.get("/products/<int:product_id>/price-per-cup")
def price_per_cup(product_id: int) -> dict[str, int]:
    """Tell the price of a cup. Has a bug: nobody makes tea from a teapot alone, and its `cups` is 0."""
    found = _find_product(product_id)
    return {"cents": found["price_cents"] // found["cups"]}


def _find_product(product_id: int) -> Row:
    found = fetch_one("SELECT * FROM product WHERE id = %s", (product_id,))
    if found is None:
        abort(404)
    return found
