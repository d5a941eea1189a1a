"""Tables, figures and the report of finished studies. Imports search and scdgn; neither imports it."""
