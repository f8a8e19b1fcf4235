"""`ul`: how far are we from true unlearnability? Poisons, SAL, UD and the pipeline that measures them."""
