"use strict";
/* Preloaded into Azurite: gives the tables of its table service an index by key, as Azure's have.
 *
 * Azurite keeps a table in a LokiJS collection with a sorted index of its partitions and one of its row keys. It looks for a
 * row among all rows of the partition, and moves all later places of both indexes when a row is replaced. What a row costs so
 * grows with the table. Here a map finds the row, and the sorted indexes are left out. Nothing else is different.
 */
const Loki = require("lokijs");

const keyOf = (row) => `${row.PartitionKey}\n${row.RowKey}`; // neither key may hold a control character
const rowsOf = Symbol("rows by key");

const { addCollection } = Loki.prototype;
Loki.prototype.addCollection = function (name, options) {
  if (!options?.indices?.includes("RowKey")) return addCollection.call(this, name, options);
  const collection = addCollection.call(this, name, { ...options, indices: [] });
  collection[rowsOf] = new Map();
  return collection;
};

const { findOne, insert, remove, update } = Loki.Collection.prototype;
Object.assign(Loki.Collection.prototype, {
  findOne(query) {
    const asksForOneRow = this[rowsOf] && query.PartitionKey !== undefined && query.RowKey !== undefined;
    return asksForOneRow ? (this[rowsOf].get(keyOf(query)) ?? null) : findOne.call(this, query);
  },
  insert(row, ...others) {
    const inserted = insert.call(this, row, ...others);
    this[rowsOf]?.set(keyOf(row), row);
    return inserted;
  },
  update(row) {
    const updated = update.call(this, row);
    this[rowsOf]?.set(keyOf(row), row);
    return updated;
  },
  remove(row) {
    const removed = remove.call(this, row);
    this[rowsOf]?.delete(keyOf(row));
    return removed;
  },
});
