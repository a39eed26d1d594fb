"""What a browser shows: values for the templates, the templates, and the page."""
