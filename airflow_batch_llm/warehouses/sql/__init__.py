"""Any database with a DB-API driver."""
