-- follow: what follows an end, in a result database that is not the broker's.
-- ARGV: prefix, then the operations (see follow).
follow(2, #ARGV)
return 1
