"""Task gradients without their Jacobian: from autograd's graph to inner products and weighted sums."""
