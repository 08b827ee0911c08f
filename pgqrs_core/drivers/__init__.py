"""The only code that blocks: it performs the effects of operations on psycopg connections."""
