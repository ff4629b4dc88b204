"""Curvature of the loss: the Gauss–Newton diagonal, exact entries, leading eigenpairs."""
