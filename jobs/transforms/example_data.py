"""The example retailer's raw rows: every value is a hash of the seed, the table and the row's number.

So the same seed gives the same rows whatever the number of partitions or machines, and any size is only a longer range.
Times lie in the 90 days before `end`; a few rows are bad on purpose (no time, no customer), as real logs are.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

DAY_US = 86_400_000_000
DAYS = 90
PURCHASES_EACH = 12
SESSIONS_EACH = 8
CATEGORIES = ("books", "garden", "kitchen", "music", "sports", "toys")
_COUNTRIES = ("AT", "DE", "ES", "FR", "IT", "NL", "PL", "SE")


class Draw:
    """Uniform draws for the rows of one table; each name is an independent stream."""

    def __init__(self, table: str, seed: int) -> None:
        self.table, self.seed = table, seed

    def unit(self, name: str) -> Column:
        """In [0, 1)."""
        hashed = F.xxhash64(F.col("id"), F.lit(self.seed), F.lit(f"{self.table}.{name}"))
        return F.pmod(hashed, F.lit(1 << 40)) / F.lit(float(1 << 40))

    def whole(self, name: str, below: int) -> Column:
        return F.floor(self.unit(name) * below).cast("bigint")

    def one_of(self, name: str, values: tuple[str, ...]) -> Column:
        return F.element_at(F.array(*map(F.lit, values)), (self.whole(name, len(values)) + 1).cast("int"))

    def time(self, name: str, end_us: int) -> Column:
        """A microsecond of the 90 days before `end`."""
        return F.timestamp_micros(F.lit(end_us) - 1 - self.whole(name, DAYS * DAY_US))


def customer_id(number: Column) -> Column:
    """1 -> CUST001."""
    return F.format_string("CUST%03d", number)


def customers(spark: SparkSession, *, count: int, end_us: int, seed: int) -> DataFrame:
    draw = Draw("customers", seed)
    number = F.col("id") + 1
    return spark.range(count).select(
        customer_id(number).alias("customer_id"),
        F.format_string("c%d@%s.example", number, draw.one_of("domain", ("mail", "post", "web"))).alias("email"),
        draw.one_of("country", _COUNTRIES).alias("country"),
        F.date_add(F.lit("1950-01-01").cast("date"), draw.whole("birth", 20_000).cast("int")).alias("birth_date"),
        F.timestamp_micros(F.lit(end_us - DAYS * DAY_US)).alias("updated_at"),
    )


def products(spark: SparkSession, *, count: int, end_us: int, seed: int) -> DataFrame:
    draw = Draw("products", seed)
    list_price = (draw.whole("price", 20_000) + 99) / F.lit(100)
    price = list_price * F.when(draw.unit("discount") < 0.2, 0.8).otherwise(1.0)
    embedding = F.array(*((draw.unit(f"e{i}") * 2 - 1).cast("float") for i in range(8)))
    return spark.range(count).select(
        (F.col("id") + 1).alias("product_id"),
        draw.one_of("category", CATEGORIES).alias("category"),
        list_price.cast("decimal(10,2)").alias("list_price"),
        price.cast("decimal(10,2)").alias("price"),
        embedding.alias("embedding"),
        F.timestamp_micros(F.lit(end_us - DAYS * DAY_US)).alias("updated_at"),
    )


def purchases(spark: SparkSession, *, count: int, end_us: int, seed: int) -> DataFrame:
    """About a dozen a customer; one in a thousand has no time, one in twenty was cancelled, some arrive a day late."""
    draw = Draw("purchases", seed)
    bought = draw.time("purchased_at", end_us)
    delay = F.when(draw.unit("late") < 0.02, F.lit(DAY_US)).otherwise(draw.whole("delay", 60_000_000))
    return spark.range(count * PURCHASES_EACH).select(
        F.col("id").alias("purchase_id"),
        customer_id(_skewed(draw, count)).alias("customer_id"),
        (draw.whole("product", max(10, count // 10)) + 1).alias("product_id"),
        draw.one_of("category", CATEGORIES).alias("category"),
        F.round(F.exp(draw.unit("amount") * 5) + 1, 2).alias("amount"),
        F.when(draw.unit("status") < 0.05, "cancelled").otherwise("completed").alias("status"),
        F.when(draw.unit("bad") >= 0.001, bought).alias("purchased_at"),
        F.timestamp_micros(F.unix_micros(bought) + delay).alias("ingested_at"),
    )


def _skewed(draw: Draw, count: int) -> Column:
    """Low numbers buy more often, as some customers do."""
    unit = draw.unit("customer")
    return F.floor(unit * F.sqrt(unit) * count).cast("bigint") + 1


def web_sessions(spark: SparkSession, *, count: int, end_us: int, seed: int) -> DataFrame:
    draw = Draw("web_sessions", seed)
    url = F.concat(F.lit("/"), draw.one_of("page", CATEGORIES))
    page = F.struct(url.alias("url"), (draw.whole("seconds", 300) + 1).cast("int").alias("seconds"))
    return spark.range(count * SESSIONS_EACH).select(
        F.col("id").alias("session_id"),
        F.when(draw.unit("bad") >= 0.002, customer_id(draw.whole("customer", count) + 1)).alias("customer_id"),
        draw.time("ended_at", end_us).alias("ended_at"),
        F.struct(
            draw.one_of("os", ("android", "ios", "linux", "macos", "windows")).alias("os"),
            draw.one_of("browser", ("chrome", "firefox", "safari")).alias("browser"),
        ).alias("device"),
        F.array_repeat(page, (draw.whole("pages", 9) + 1).cast("int")).alias("pages"),
    )


def churn_labels(spark: SparkSession, *, count: int, end_us: int, seed: int) -> DataFrame:
    """Half a spine row a customer, in the last 30 days; one in a hundred is a customer nobody knows."""
    draw = Draw("churn_labels", seed)
    return spark.range(max(1, count // 2)).select(
        customer_id(draw.whole("customer", count + max(1, count // 100)) + 1).alias("customer_id"),
        F.timestamp_micros(F.lit(end_us) - draw.whole("time", 30 * DAY_US)).alias("event_time"),
        (draw.unit("churned") < 0.2).alias("churned"),
    )
