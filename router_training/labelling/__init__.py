"""From a data set and a list of candidates to judged scores: read, ask, keep, judge, tabulate."""
