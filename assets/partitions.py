"""The grains of the graph: a shard of a data set, and a task on a data set. Both grow as data sets arrive."""

import dagster as dg

TASKS = ("all", "identity", "expression")

shards = dg.DynamicPartitionsDefinition(name="shards")
datasets = dg.DynamicPartitionsDefinition(name="datasets")
evaluations = dg.MultiPartitionsDefinition({"dataset": datasets, "task": dg.StaticPartitionsDefinition(list(TASKS))})
