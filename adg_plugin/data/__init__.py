"""Any data set -> rows -> prompts: sources, readers, layouts, rows, templates, prompts."""
