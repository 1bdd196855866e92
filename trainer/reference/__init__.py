"""The recipe of the shipped pair: a policy and a PRM of the Game of 24, made from nothing."""
