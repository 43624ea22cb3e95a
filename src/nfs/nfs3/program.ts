import type { Connection } from '../connection.ts';
import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted } from '../rpc.ts';
import { type ProcedureRow, runProcedure } from './call.ts';
import { getAttributes, read } from './data.ts';
import { readDirectory, readDirectoryPlus } from './directories.ts';
import * as files from './files.ts';
import * as names from './names.ts';
import { Procedure } from './types.ts';
import { write } from './write.ts';

/**
 * NFS version 3 (RFC 1813): all 22 procedures over the `FileSystem` port. data.ts and write.ts hold the
 * three that a running machine lives on; all others are rows of one table, run by call.ts.
 */
const rows: Readonly<Partial<Record<Procedure, ProcedureRow>>> = {
  [Procedure.setattr]: files.setAttributes,
  [Procedure.lookup]: names.lookup,
  [Procedure.access]: files.access,
  [Procedure.readlink]: files.readLink,
  [Procedure.create]: names.create,
  [Procedure.mkdir]: names.makeDirectory,
  [Procedure.symlink]: names.makeSymlink,
  [Procedure.mknod]: names.makeNode,
  [Procedure.remove]: names.remove,
  [Procedure.rmdir]: names.removeDirectory,
  [Procedure.rename]: names.rename,
  [Procedure.link]: names.link,
  [Procedure.readdir]: readDirectory,
  [Procedure.readdirplus]: readDirectoryPlus,
  [Procedure.fsstat]: files.fileSystemStatus,
  [Procedure.fsinfo]: files.fileSystemInfo,
  [Procedure.pathconf]: files.pathConfiguration,
  [Procedure.commit]: files.commit,
};

export function callNfs3(connection: Connection): void {
  const procedure = connection.header.procedure;
  switch (procedure) {
    case Procedure.read:
      return read(connection);
    case Procedure.write:
      return write(connection);
    case Procedure.getattr:
      return getAttributes(connection);
    default:
      return callOther(connection, procedure);
  }
}

function callOther(connection: Connection, procedure: number): void {
  const row = rows[procedure as Procedure];
  if (row !== undefined) return runProcedure(connection, row);
  const { xid } = connection.header;
  const status =
    procedure === Procedure.null ? AcceptStatus.success : AcceptStatus.procedureUnavailable;
  connection.reply(REPLY_HEADER_BYTES, (writer) => writeAccepted(writer, xid, status));
}
