import { stat } from 'node:fs/promises';

/**
 * What changes about a file whenever somebody writes to it or puts another in its place: inode,
 * size and time of the last write, as one text; the same seen from two machines that share it.
 * undefined: it is no regular file (a block
 * device keeps its times). Throws system errors.
 */
export async function fileStamp(path: string): Promise<string | undefined> {
  const found = await stat(path, { bigint: true });
  if (!found.isFile()) return undefined;
  return `${found.ino} ${found.size} ${found.mtimeNs}`;
}
