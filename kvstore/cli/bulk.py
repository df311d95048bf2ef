def load_pairs(client, pairs, total, description, console):
    batch={}
    for k,v in pairs:
        batch[k]=v
        if len(batch)==1000: client.put_many(batch); batch={}
    client.put_many(batch)
