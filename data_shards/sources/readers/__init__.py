"""Files that several sources read: pictures, tables, pickles without executing them."""
