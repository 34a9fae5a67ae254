"""Routing data: which of several adapters should handle a screenshot and a request.

``sources`` reads the adapters' own data sets, ``dividing`` chooses rows and parts that share no
picture, ``generating`` writes the folder, ``checks`` measures what it promises and
``classification`` turns it into conversations whose answer is an adapter's name. ``screens`` draws
data sets to practise on.
"""
