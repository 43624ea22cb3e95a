import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { toRouseError } from '../errors.ts';

/** Puts the content in the place of the file, whole or not at all, for its owner's eyes alone. */
export async function replaceFile(file: string, content: string | Uint8Array): Promise<void> {
  try {
    await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
    const temporary = `${file}.new`;
    const handle = await fs.open(temporary, 'w', 0o600);
    try {
      await handle.writeFile(content);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, file);
    const directory = await fs.open(path.dirname(file), 'r');
    await directory.sync().finally(() => directory.close());
  } catch (error) {
    throw toRouseError(error, file);
  }
}
