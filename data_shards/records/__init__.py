"""What a record is: schema, the record in memory, its bytes, statistics over many."""
