"""The verb `doctor`: can one train here, and is it closed to strangers? Every answer is ok, warn or fail, with what to
do. One file a subject; `facts` runs on every node, everything else on the machine that asks."""
