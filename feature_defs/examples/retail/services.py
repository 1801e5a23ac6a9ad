"""What models use."""

from feature_defs import Service

from .profiles import customer_profile, product_profile
from .purchases import customer_category_spend, customer_purchases
from .sessions import customer_sessions

churn = Service(
    "churn",
    owner="crm",
    description="will the customer leave within a month",
    features=[
        customer_purchases["total_purchases", "avg_purchase_value", "customer_segment", "spent_30d"],
        customer_sessions["sessions_7d", "last_os"],
        customer_profile["country"],
    ],
)

recommend = Service(
    "recommend",
    owner="recommendations",
    description="which product to show next",
    features=[product_profile["price", "embedding"], customer_category_spend],
)
