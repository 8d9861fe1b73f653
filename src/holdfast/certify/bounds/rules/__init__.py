"""How each operation of an exported program becomes nodes of a graph.

A rule takes a :class:`Builder` and the operation's arguments, in which :class:`Symbol` stands for what depends on the
network's input. To support another operation, write a rule in the file of its kind and name it in
:mod:`~holdfast.certify.bounds.rules.table`.

Programs are exported for a batch of one. Wherever they carry that dimension, what else is there belongs to the one
example, so nothing has to be known of where a network moves its batch, or what it merges it with.
"""
