"""Claims about the noise: do outputs vary, because of the posterior alone, by how much, and is it the posterior's?"""
