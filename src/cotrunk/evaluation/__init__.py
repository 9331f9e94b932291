"""How good are pictures, alone and in their groups: networks that look at them, and what is made of what they see."""
