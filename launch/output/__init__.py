"""What commands print: tables on a terminal, one JSON line, one look for pages."""
