DROP TABLE IF EXISTS photo, review, order_line, customer_order, customer, product, category;

CREATE TABLE category (
  id INT PRIMARY KEY,
  name VARCHAR(40) NOT NULL
);

CREATE TABLE product (
  id INT PRIMARY KEY,
  category_id INT NOT NULL,
  name VARCHAR(80) NOT NULL,
  description VARCHAR(400) NOT NULL,
  price_cents INT NOT NULL,
  cups INT NOT NULL COMMENT 'how many cups a pack makes',
  stock INT NOT NULL,
  KEY by_category (category_id)
);

CREATE TABLE customer (
  id INT PRIMARY KEY,
  name VARCHAR(60) NOT NULL,
  city VARCHAR(40) NOT NULL
);

CREATE TABLE customer_order (
  id INT PRIMARY KEY,
  customer_id INT NOT NULL,
  ordered_on DATE NOT NULL,
  KEY by_customer (customer_id)
);

CREATE TABLE order_line (
  order_id INT NOT NULL,
  product_id INT NOT NULL,
  quantity INT NOT NULL,
  price_cents INT NOT NULL,
  PRIMARY KEY (order_id, product_id),
  KEY by_product (product_id)
);

CREATE TABLE review (
  id INT PRIMARY KEY AUTO_INCREMENT,
  product_id INT NOT NULL,
  author VARCHAR(60) NOT NULL,
  stars TINYINT NOT NULL,
  body VARCHAR(600) NOT NULL,
  KEY by_product (product_id)
);

CREATE TABLE photo (
  id INT PRIMARY KEY AUTO_INCREMENT,
  product_id INT NOT NULL,
  bytes INT NOT NULL,
  sha256 CHAR(64) NOT NULL
);
