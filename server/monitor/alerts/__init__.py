"""Alert rules, and the channels by which they reach people who do not look at the page."""
