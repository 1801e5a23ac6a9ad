"""What features are about."""

from feature_defs import Entity

customer = Entity("customer", keys={"customer_id": "string"})
product = Entity("product", keys={"product_id": "bigint"})
customer_category = Entity(
    "customer_category",
    keys={"customer_id": "string", "category": "string"},
    description="a customer's dealings with one category of products",
)
