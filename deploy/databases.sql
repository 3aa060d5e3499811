-- Run once, by the first start of the compose file's Postgres; the database `dagster` is made by the image itself.
CREATE DATABASE mlflow;
CREATE DATABASE queue;
