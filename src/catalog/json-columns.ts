/** A row whose columns named in `Parsed` are values instead of JSON text. */
export type JsonColumns<Row, Parsed> = Readonly<Omit<Row, keyof Parsed>> & Readonly<Parsed>;

/**
 * Some columns of a table are JSON text. `read` parses them; `write` makes text of them, where
 * null stays null and what is missing stays missing.
 */
export function jsonColumns<Parsed extends object>(columns: readonly (keyof Parsed & string)[]) {
  return {
    read<Row extends { readonly [Key in keyof Parsed]: string | null }>(
      row: Row,
    ): JsonColumns<Row, Parsed> {
      const parsed: Record<string, unknown> = { ...row };
      for (const column of columns) {
        const text = row[column];
        parsed[column] = text === null ? null : JSON.parse(text);
      }
      return parsed as JsonColumns<Row, Parsed>;
    },
    write<Value extends Partial<Parsed>>(
      value: Value,
    ): Omit<Value, keyof Parsed> & { [Key in keyof Parsed]?: string | null } {
      const written: Record<string, unknown> = { ...value };
      for (const column of columns) {
        const content = written[column];
        if (content === undefined) delete written[column];
        else written[column] = content === null ? null : JSON.stringify(content);
      }
      return written as Omit<Value, keyof Parsed> & { [Key in keyof Parsed]?: string | null };
    },
  };
}
