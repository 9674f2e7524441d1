"""Curvature of the mean loss by products: Hessian, Gauss-Newton, Fisher, and blocks of them."""
