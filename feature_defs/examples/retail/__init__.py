"""A retailer: customers, purchases, web sessions and products, as one would define them."""
