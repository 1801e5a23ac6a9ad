"""What the groups over purchases make of a few rows: `tidemark test` runs it."""

from feature_defs.testing import Case

from .purchases import customer_category_spend, customer_purchases

only_completed_purchases_count = Case(
    customer_purchases,
    source="""
        customer_id | amount | status    | purchased_at
        CUST001     | 400    | completed | 2026-01-01 10:00:00
        CUST001     | 50     | returned  | 2026-01-01 11:00:00
        CUST001     | null   | completed | 2026-01-02 10:00:00
        CUST002     | 30     | returned  | 2026-01-02 12:00:00
    """,
    expected="""
        customer_id | event_time | total_purchases | total_spent | avg_purchase_value | customer_segment
        CUST001     | 2026-01-02 | 1               | 400         | 400                | silver
        CUST001     | 2026-01-03 | 2               | 400         | 200                | silver
        CUST002     | 2026-01-03 | 0               | null        | 0                  | bronze
    """,
)

a_purchase_leaves_the_window_after_30_days = Case(
    customer_purchases,
    source="""
        customer_id | amount | status    | purchased_at
        CUST001     | 7      | completed | 2026-01-01 00:00:00
        CUST001     | 5      | completed | 2026-01-31 00:00:00
        CUST001     | 1      | returned  | 2026-02-01 00:00:00
        CUST002     | 100    | completed | 2026-01-31 23:59:59
    """,
    now="2026-01-31",
    since="2026-01-30",
    expected="""
        customer_id | event_time | spent_30d
        CUST001     | 2026-01-30 | 7
        CUST001     | 2026-01-31 | 5
    """,
)

rows_without_customer_or_time_are_rejected = Case(
    customer_purchases,
    source="""
        customer_id | amount | status    | purchased_at
        null        | 10     | completed | 2026-01-01 10:00:00
        CUST001     | 11     | completed | null
        CUST001     | 12     | completed | 2026-01-01 10:00:00
    """,
    expected="""
        customer_id | total_spent
        CUST001     | 12
    """,
    rejected="""
        reason                  | amount
        key customer_id is null | 10
        event_time is null      | 11
    """,
)

a_refund_above_all_purchases_stops_the_job = Case(
    customer_purchases,
    source="""
        customer_id | amount | status    | purchased_at
        CUST001     | -10    | completed | 2026-01-01 10:00:00
    """,
    broken={"average_not_negative": 1},
)

categories_are_apart = Case(
    customer_category_spend,
    source="""
        customer_id | category | amount | purchased_at
        CUST001     | books    | 10     | 2026-01-01 10:00:00
        CUST001     | toys     | 2.5    | 2026-01-01 11:00:00
        CUST001     | books    | null   | 2026-01-01 12:00:00
    """,
    expected="""
        customer_id | category | event_time          | category_purchases | category_spent | category_last_amount
        CUST001     | books    | 2026-01-01 10:00:00 | 1                  | 10             | 10
        CUST001     | toys     | 2026-01-01 11:00:00 | 1                  | 2.5            | 2.5
        CUST001     | books    | 2026-01-01 12:00:00 | 2                  | 10             | 10
    """,
)
