"""The report: charts of a result, and one page that holds them."""
