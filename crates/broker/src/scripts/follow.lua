-- follow: what follows an end, in a result database that is not the broker's, and what a task sends while it runs.
-- ARGV: prefix, then the operations (see follow).
check_follow(2, #ARGV)
follow(2, #ARGV)
return 1
