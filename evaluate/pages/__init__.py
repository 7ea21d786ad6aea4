"""Pages and pictures for people: report.html, explain.html, charts. Plain dicts in, text out."""
