"""How a report looks: its sections, its style, and the page that they become."""
