"""What trainings and evaluations leave for people: plots, figures and a page of HTML."""
