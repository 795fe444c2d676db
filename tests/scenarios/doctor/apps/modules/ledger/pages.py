from ledger import nothing_there
