"""Private servers, described as data, and the load that drives them."""
