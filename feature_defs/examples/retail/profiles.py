"""What is known of customers and products: rows that are features as they stand."""

from feature_defs import Feature, FeatureGroup, Source

from .entities import customer, product

customers = Source(
    "customers",
    path="lake://raw/customers",
    format="parquet",
    event_time="updated_at",
    schema={
        "customer_id": "string",
        "email": "string",
        "country": "string",
        "birth_date": "date",
        "updated_at": "timestamp",
    },
)

customer_profile = FeatureGroup(
    "customer_profile",
    entity=customer,
    source=customers,
    online=True,
    owner="crm",
    tags=["crm"],
    description="who a customer is",
    features=[
        Feature("country", "string"),
        Feature("birth_date", "date", pii=True),
        Feature("email_domain", "string", "substring_index(email, '@', -1)", pii=True),
    ],
)

products = Source("products", path="lake://raw/products", format="parquet", event_time="updated_at")

product_profile = FeatureGroup(
    "product_profile",
    entity=product,
    source=products,
    offline="parquet",
    online=True,
    owner="recommendations",
    description="what a product is",
    features=[
        Feature("price", "decimal(10,2)"),
        Feature("is_discounted", "boolean", "price < list_price"),
        Feature("embedding", "array<float>", description="of the product's text, 8 values"),
    ],
)
