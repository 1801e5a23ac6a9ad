"""What customers buy: one source, two groups at different grain."""

from feature_defs import Aggregate, Expectation, Feature, FeatureGroup, Source

from .entities import customer, customer_category

purchases = Source(
    "purchases",
    path="lake://raw/purchases",
    format="delta",
    event_time="purchased_at",
    created_time="ingested_at",
    schema={
        "purchase_id": "bigint",
        "customer_id": "string",
        "product_id": "bigint",
        "category": "string",
        "amount": "double",
        "status": "string",
        "purchased_at": "timestamp",
        "ingested_at": "timestamp",
    },
)

SEGMENT = """
    case when total_spent >= 2000 then 'platinum'
         when total_spent >= 1000 then 'gold'
         when total_spent >= 400 then 'silver'
         else 'bronze' end
"""
DONE = "status = 'completed'"

customer_purchases = FeatureGroup(
    "customer_purchases",
    entity=customer,
    source=purchases,
    every="1d",
    ttl="90d",
    online=True,
    owner="crm",
    tags=["crm"],
    description="what a customer has bought so far, at the end of each day",
    features=[
        Feature("total_purchases", "bigint", Aggregate("count", where=DONE), description="completed purchases"),
        Feature("total_spent", "double", Aggregate("sum", "coalesce(amount, 0)", where=DONE)),
        Feature("spent_30d", "double", Aggregate("sum", "amount", window="30d", where=DONE)),
        Feature(
            "avg_purchase_value",
            "double",
            "coalesce(total_spent / nullif(total_purchases, 0), 0)",
            description="0 when there are none",
        ),
        Feature(
            "customer_segment",
            "string",
            SEGMENT,
            allowed_values=["bronze", "silver", "gold", "platinum"],
            tags=["marketing"],
        ),
    ],
    expectations=[Expectation("average_not_negative", "avg_purchase_value >= 0", severity="stop")],
)

customer_category_spend = FeatureGroup(
    "customer_category_spend",
    entity=customer_category,
    source=purchases,
    ttl="365d",
    online=True,
    owner="recommendations",
    description="how a customer's spending on a category stands after each purchase in it",
    features=[
        Feature("category_purchases", "bigint", Aggregate("count")),
        Feature("category_spent", "double", Aggregate("sum", "amount")),
        Feature("category_last_amount", "double", Aggregate("last", "amount")),
    ],
)
