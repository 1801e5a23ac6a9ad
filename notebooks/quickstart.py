# Databricks notebook source
# MAGIC %md
# MAGIC # Tidemark in a notebook
# MAGIC The verbs of the command line as methods of one object. Locally this file runs as plain Python in the checkout;
# MAGIC on Databricks import it as a notebook and name your profile in `TIDEMARK_PROFILE`.

# COMMAND ----------
from jobs.store import open_store

store = open_store()  # the profile that TIDEMARK_PROFILE names, else conf/local.toml

# COMMAND ----------
# MAGIC %md Raw data of the example (only for a lake of your own), then the registry and the offline tables.

# COMMAND ----------
print(store.generate(customers=200).text())
print(store.apply(message="quickstart").text())
print(store.compute().text())

# COMMAND ----------
# MAGIC %md A training set: any DataFrame with the entity's keys and `event_time` is a spine.

# COMMAND ----------
spine = store.place.spark.sql("select 'CUST001' as customer_id, current_timestamp() as event_time, true as churned")
training = store.training_set(spine, service="churn")
training.show(truncate=False)

# COMMAND ----------
# MAGIC %md Online: load the latest values, then read one customer back and hold it against the offline tables.

# COMMAND ----------
print(store.materialize().text())
print(store.online({"customer_id": "CUST001"}, service="churn", check=True).text())
