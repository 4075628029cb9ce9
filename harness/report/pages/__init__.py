"""What people read: documents, their tables, and the forms they are written in."""
