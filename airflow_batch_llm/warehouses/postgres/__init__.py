"""PostgreSQL: rows leave and answers come in through COPY."""
