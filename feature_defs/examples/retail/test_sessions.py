"""Nested JSON logs as text, a service's training rows, and a source that declares no types."""

from feature_defs.testing import Case

from .profiles import product_profile
from .services import churn
from .sessions import customer_sessions

SESSIONS = """
    customer_id | ended_at            | device          | pages
    CUST001     | 2026-01-01 09:00:00 | {"os": "mac"}   | [{"url": "/", "seconds": 5}, {"url": "/cart", "seconds": 9}]
    CUST001     | 2026-01-01 21:00:00 | {"os": "linux"} | []
    CUST001     | soon                | null            | null
"""

pages_and_seconds_of_a_day = Case(
    customer_sessions,
    source=SESSIONS,
    expected="""
        customer_id | event_time | sessions_7d | pages_7d | longest_session | last_os
        CUST001     | 2026-01-02 | 2           | 2        | 14              | linux
    """,
    rejected="""
        reason                      | customer_id
        row does not fit the schema | CUST001
    """,
)

a_model_sees_what_was_known_at_its_time = Case(
    churn,
    sources={
        "web_sessions": SESSIONS,
        "purchases": """
            customer_id | amount | status    | purchased_at        | ingested_at
            CUST001     | 500    | completed | 2026-01-01 10:00:00 | 2026-01-01 10:00:01
            CUST001     | 600    | completed | 2026-01-02 10:00:00 | 2026-01-02 10:00:01
        """,
    },
    spine="""
        label | customer_id | event_time
        a     | CUST001     | 2026-01-01 23:59:59
        b     | CUST001     | 2026-01-02
        c     | CUST001     | 2026-01-03 08:00:00
        d     | CUST002     | 2026-01-03 08:00:00
    """,
    expected="""
        label | total_purchases | customer_segment | last_os
        a     | null            | null             | null
        b     | 1               | silver           | linux
        c     | 2               | gold             | linux
        d     | null            | null             | null
    """,
)

prices_and_embeddings = Case(
    product_profile,
    schema={"list_price": "decimal(10,2)"},
    source="""
        product_id | price | list_price | embedding  | updated_at
        1          | 9.50  | 10         | [0.1, 0.2] | 2026-01-01
        2          | 10    | 10         | null       | 2026-01-01
    """,
    expected="""
        product_id | event_time | price | is_discounted | embedding
        1          | 2026-01-01 | 9.5   | true          | [0.1, 0.2]
        2          | 2026-01-01 | 10    | false         | null
    """,
)
