//! From [`Text`](crate::text::Text) to [`Module`]: what names and opcodes mean.

use crate::program::{
    Address, Collective, Function, Instruction, Module, Operand, Operation, Program, Register,
    Shuffle, Space, Special,
};
use crate::text::{FunctionText, Line, Statement, Term, Text, Variable, parse};
use crate::value::{Binary, Comparison, Conversion, Type, Unary};
use std::collections::HashMap;
use std::ops::Range;

/// A program of several units' PTX.
///
/// # Errors
/// What is not understood: a new instruction belongs here.
pub fn program<'a>(units: impl IntoIterator<Item = &'a str>) -> Result<Program, String> {
    let mut program = Program::default();
    for unit in units {
        let text = parse(unit)?;
        let module = module(&text)?;
        for (index, function) in text.functions.iter().enumerate() {
            if function.is_kernel {
                let place = (program.modules.len(), index);
                program.kernels.insert(function.name.to_owned(), place);
            }
        }
        program.modules.push(module);
    }
    Ok(program)
}

/// What a name stands for.
#[derive(Debug, Clone)]
enum Named {
    /// `%r<8>` is `%r0` to `%r7`.
    Registers(Range<Register>),
    Register(Register),
    Param(Range<usize>),
    Local(u64),
    /// In the shared space.
    Shared(u64),
    /// Nothing here reads it.
    Constant,
}

/// Takes room for variables, one after the other.
fn place(end: &mut usize, variable: &Variable<'_>) -> Range<usize> {
    let start = end.next_multiple_of(variable.align.max(1) as usize);
    *end = start + (variable.size * variable.count) as usize;
    start..*end
}

/// A launch's own shared memory begins at a multiple of this.
const SHARED_ALIGN: usize = 16;

fn module(text: &Text<'_>) -> Result<Module, String> {
    let mut shared_bytes = 0;
    let mut outside = HashMap::new();
    let mut launched = Vec::new();
    for variable in &text.variables {
        let named = match variable.space {
            "shared" if variable.count == 0 => {
                launched.push(variable.name);
                continue;
            }
            "shared" => Named::Shared(place(&mut shared_bytes, variable).start as u64),
            _ => Named::Constant,
        };
        outside.insert(variable.name, named);
    }
    let inside = text.functions.iter().flat_map(|function| &function.lines);
    let inside = inside.filter_map(|(_, line)| match line {
        Line::Declare(variable) if variable.space == "shared" => Some(variable),
        _ => None,
    });
    for variable in inside {
        let start = place(&mut shared_bytes, variable).start as u64;
        outside.insert(variable.name, Named::Shared(start));
    }
    shared_bytes = shared_bytes.next_multiple_of(SHARED_ALIGN);
    for name in launched {
        outside.insert(name, Named::Shared(shared_bytes as u64));
    }
    let names = text.functions.iter().enumerate().map(|(index, it)| (it.name, index)).collect();
    let functions = text.functions.iter().map(|function| {
        FunctionDecoder::new(&outside, &names, function)
            .decode(function)
            .map_err(|(line, error)| format!("{}, PTX line {line}: {error}", function.name))
    });
    Ok(Module { functions: functions.collect::<Result<_, _>>()?, shared_bytes })
}

struct FunctionDecoder<'a> {
    functions: &'a HashMap<&'a str, usize>,
    outside: &'a HashMap<&'a str, Named>,
    /// From the function's body inwards.
    scopes: Vec<HashMap<&'a str, Named>>,
    /// Bits of each register.
    widths: Vec<u32>,
    function: Function,
    labels: HashMap<&'a str, usize>,
    /// Branches whose label was not there yet.
    branches: Vec<(usize, &'a str)>,
}

type Outcome<T> = Result<T, String>;

impl<'a> FunctionDecoder<'a> {
    fn new(
        outside: &'a HashMap<&'a str, Named>,
        functions: &'a HashMap<&'a str, usize>,
        text: &FunctionText<'a>,
    ) -> Self {
        let mut function = Function {
            name: text.name.to_owned(),
            max_threads: text.max_threads,
            ..Function::default()
        };
        let mut scope = HashMap::new();
        for variable in &text.params {
            let range = place(&mut function.param_bytes, variable);
            scope.insert(variable.name, Named::Param(range.clone()));
            function.params.push(range);
        }
        if let Some(variable) = &text.result {
            let range = place(&mut function.param_bytes, variable);
            scope.insert(variable.name, Named::Param(range.clone()));
            function.result = Some(range);
        }
        FunctionDecoder {
            functions,
            outside,
            scopes: vec![scope],
            widths: Vec::new(),
            function,
            labels: HashMap::new(),
            branches: Vec::new(),
        }
    }

    fn decode(mut self, text: &'a FunctionText<'a>) -> Result<Function, (u32, String)> {
        for (number, line) in &text.lines {
            self.line(line).map_err(|error| (*number, error))?;
            self.function.lines.resize(self.function.code.len(), *number);
        }
        for (at, label) in &self.branches {
            let target = self.labels.get(label);
            let target =
                *target.ok_or_else(|| (self.function.lines[*at], format!("no {label}")))?;
            self.function.code[*at].operation = Operation::Branch(target);
        }
        self.function.registers = self.widths.len();
        Ok(self.function)
    }

    fn line(&mut self, line: &'a Line<'a>) -> Outcome<()> {
        match line {
            Line::Label(name) => _ = self.labels.insert(name, self.function.code.len()),
            Line::Open => self.scopes.push(HashMap::new()),
            Line::Close => _ = self.scopes.pop(),
            Line::Declare(variable) => self.declare(variable),
            Line::Statement(statement) => self.statement(statement)?,
        }
        Ok(())
    }

    fn declare(&mut self, variable: &Variable<'a>) {
        let named = match variable.space {
            "reg" => {
                let first = self.widths.len() as Register;
                self.widths
                    .resize(self.widths.len() + variable.count.max(1) as usize, variable.size * 8);
                match variable.count {
                    0 => Named::Register(first),
                    count => Named::Registers(first..first + count),
                }
            }
            "param" => Named::Param(place(&mut self.function.param_bytes, variable)),
            "local" => Named::Local(place(&mut self.function.local_bytes, variable).start as u64),
            // Placed before: `module`.
            _ => return,
        };
        let scope = self.scopes.last_mut().expect("the function's own is there until its end");
        scope.insert(variable.name, named);
    }

    fn find(&self, name: &str) -> Option<&Named> {
        let inner = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        inner.or_else(|| self.outside.get(name))
    }

    fn register_named(&self, name: &str) -> Option<Register> {
        if let Some(Named::Register(register)) = self.find(name) {
            return Some(*register);
        }
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        match self.find(stem)? {
            Named::Registers(range) => {
                let number: usize = name[stem.len()..].parse().ok()?;
                range.clone().nth(number)
            }
            _ => None,
        }
    }

    fn register(&self, term: &Term<'_>) -> Outcome<Register> {
        match term {
            Term::Name(name) => {
                self.register_named(name).ok_or_else(|| format!("no register {name}"))
            }
            other => Err(format!("a register expected, {other:?} found")),
        }
    }

    fn operand(&self, of: Type, term: &Term<'_>) -> Outcome<Operand> {
        match term {
            Term::Number(text) => {
                of.literal(text).map(Operand::Value).ok_or_else(|| format!("{text} is no {of:?}"))
            }
            Term::Name(name) => self.named_operand(name),
            other => Err(format!("an operand expected, {other:?} found")),
        }
    }

    fn named_operand(&self, name: &str) -> Outcome<Operand> {
        if let Some(register) = self.register_named(name) {
            return Ok(Operand::Register(register));
        }
        let special = match name {
            "%tid.x" => Special::Thread,
            "%ntid.x" => Special::Threads,
            "%ctaid.x" => Special::Block,
            "%nctaid.x" => Special::Blocks,
            "%laneid" => Special::Lane,
            "%cluster_nctaid.x" => Special::ClusterBlocks,
            "%cluster_ctarank" => Special::ClusterRank,
            _ => {
                return match self.find(name) {
                    Some(Named::Param(range)) => Ok(Operand::Param(range.start as u64)),
                    Some(Named::Local(start)) => Ok(Operand::Local(*start)),
                    Some(Named::Shared(start)) => Ok(Operand::Value(*start)),
                    _ => Err(format!("{name} is not known")),
                };
            }
        };
        Ok(Operand::Special(special))
    }

    fn address(&self, term: &Term<'_>) -> Outcome<Address> {
        match term {
            Term::Address(base, offset) => {
                Ok(Address { base: self.named_operand(base)?, offset: *offset })
            }
            other => Err(format!("an address expected, {other:?} found")),
        }
    }

    fn param(&self, term: &Term<'_>) -> Outcome<Range<usize>> {
        match term {
            Term::Name(name) => match self.find(name) {
                Some(Named::Param(range)) => Ok(range.clone()),
                _ => Err(format!("{name} is no parameter")),
            },
            other => Err(format!("a parameter expected, {other:?} found")),
        }
    }

    fn statement(&mut self, statement: &'a Statement<'a>) -> Outcome<()> {
        let of_opcode = |error| format!("{}: {error}", statement.opcode);
        let guard = match statement.guard {
            Some((name, wanted)) => Some((self.register(&Term::Name(name))?, wanted)),
            None => None,
        };
        let operation = self.operation(statement).map_err(of_opcode)?;
        let signed = self.sign_extension(&operation);
        for operation in std::iter::once(operation).chain(signed) {
            self.function.code.push(Instruction { guard, operation });
        }
        Ok(())
    }

    /// A load of less than a register's bits leaves zeros above them; of a signed type the sign
    /// belongs there.
    fn sign_extension(&self, operation: &Operation) -> Option<Operation> {
        let Operation::Load { of: from @ (Type::S8 | Type::S16 | Type::S32), to, .. } = operation
        else {
            return None;
        };
        let to = *to.first()?;
        let wide = match self.widths[to as usize] {
            16 => Type::S16,
            32 => Type::S32,
            _ => Type::S64,
        };
        let conversion = Conversion { to: wide, from: *from, integral: false, saturate: false };
        Some(Operation::Convert { conversion, to, a: Operand::Register(to) })
    }

    fn operation(&mut self, statement: &'a Statement<'a>) -> Outcome<Operation> {
        let parts: Vec<&str> = statement.opcode.split('.').collect();
        let (base, suffixes) = (parts[0], &parts[1..]);
        let terms = &statement.operands[..];
        let unknown = || "not known here".to_owned();
        // The last that is a type says what is worked on.
        let of = suffixes.iter().rev().find_map(|suffix| Type::of(suffix));
        match (base, suffixes) {
            ("bra", _) => {
                let [Term::Name(label)] = terms else { return Err("no label".into()) };
                self.branches.push((self.function.code.len(), label));
                Ok(Operation::Nothing)
            }
            ("call", _) => self.call(terms),
            ("ret", _) => Ok(Operation::Return),
            ("bar", ["sync"]) => match terms {
                [Term::Number("0")] => Ok(Operation::Barrier),
                _ => Err("a barrier of some threads".into()),
            },
            ("bar", ["warp", "sync"]) => self.collective(Collective::Barrier, &terms[0]),
            ("shfl", ["sync", mode, "b32"]) => self.shuffle(mode, terms),
            ("vote", ["sync", "ballot", "b32"]) => {
                let [to, predicate, mask] = terms else { return Err(unknown()) };
                let predicate = self.operand(Type::Pred, predicate)?;
                self.collective(Collective::Ballot { to: self.register(to)?, predicate }, mask)
            }
            ("barrier", ["cluster", "arrive", "release"]) => Ok(Operation::ClusterArrive),
            ("barrier", ["cluster", "wait", "acquire"]) => Ok(Operation::ClusterWait),
            // Memory here is one, and in order.
            ("membar" | "fence" | "griddepcontrol", _) => Ok(Operation::Nothing),
            ("nanosleep", _) => Ok(Operation::Pause),
            ("cp", ["async", rest @ ..]) => self.copy(rest, terms),
            ("ld" | "st", _) => self.memory(base, suffixes, of.ok_or_else(unknown)?, terms),
            ("atom", ["global", "inc", "u32"]) => {
                let [to, address, limit] = terms else { return Err(unknown()) };
                Ok(Operation::AtomicIncrement {
                    to: self.register(to)?,
                    address: self.address(address)?,
                    limit: self.operand(Type::U32, limit)?,
                })
            }
            ("cvta", _) => self.change_space(suffixes, terms),
            ("mapa", ["u64"]) => {
                let [to, a, rank] = terms else { return Err(unknown()) };
                Ok(Operation::MapShared {
                    to: self.register(to)?,
                    a: self.operand(Type::U64, a)?,
                    rank: self.operand(Type::U32, rank)?,
                })
            }
            ("cvt", _) => self.convert(suffixes, terms),
            ("mov", [_]) if terms.iter().any(|term| matches!(term, Term::List(_))) => {
                self.pack_or_unpack(of.ok_or_else(unknown)?, terms)
            }
            _ => self.arithmetic(base, suffixes, of.ok_or_else(unknown)?, terms),
        }
    }

    fn call(&self, terms: &[Term<'_>]) -> Outcome<Operation> {
        let (result, rest) = match terms {
            [Term::List(result), rest @ ..] => (result.first(), rest),
            rest => (None, rest),
        };
        let (name, arguments) = match rest {
            [Term::Name(name)] => (name, &[][..]),
            [Term::Name(name), Term::List(arguments)] => (name, &arguments[..]),
            _ => return Err("not a call of a function by its name".into()),
        };
        let function = *self.functions.get(name).ok_or_else(|| format!("no function {name}"))?;
        let result = result.map(|result| self.param(result)).transpose()?;
        let arguments = arguments.iter().map(|it| self.param(it)).collect::<Outcome<_>>()?;
        Ok(Operation::Call { function, arguments, result })
    }

    fn collective(&self, collective: Collective, mask: &Term<'_>) -> Outcome<Operation> {
        Ok(Operation::Collective { collective, mask: self.operand(Type::U32, mask)? })
    }

    fn shuffle(&self, mode: &str, terms: &[Term<'_>]) -> Outcome<Operation> {
        let mode = match mode {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return Err("not known here".into()),
        };
        let (to, in_range, rest) = match terms {
            [to, in_range, rest @ ..] if rest.len() == 4 => {
                (to, Some(self.register(in_range)?), rest)
            }
            [to, rest @ ..] => (to, None, rest),
            [] => return Err("no operands".into()),
        };
        let [value, lane, clamp, mask] = rest else { return Err("not its operands".into()) };
        let [value, lane, clamp] = [value, lane, clamp].map(|term| self.operand(Type::U32, term));
        let (value, lane, clamp) = (value?, lane?, clamp?);
        let to = self.register(to)?;
        self.collective(Collective::Shuffle { mode, to, in_range, value, lane, clamp }, mask)
    }

    fn copy(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        match (suffixes, terms) {
            (["cg", "shared", "global"], [to, from, bytes, read]) => {
                let Operand::Value(bytes) = self.operand(Type::U32, bytes)? else {
                    return Err("a size that is not said".into());
                };
                let read = self.operand(Type::U32, read)?;
                Ok(Operation::Copy {
                    to: self.address(to)?,
                    from: self.address(from)?,
                    bytes,
                    read,
                })
            }
            (["commit_group"], []) => Ok(Operation::CopyCommit),
            (["wait_group"], [Term::Number(groups)]) => {
                Ok(Operation::CopyWait(groups.parse().map_err(|_| "no number")?))
            }
            _ => Err("not known here".into()),
        }
    }

    fn memory(
        &self,
        base: &str,
        suffixes: &[&str],
        of: Type,
        terms: &[Term<'_>],
    ) -> Outcome<Operation> {
        let mut space = Space::Generic;
        for suffix in suffixes {
            match *suffix {
                "global" => space = Space::Global,
                "shared" => space = Space::Shared,
                "local" => space = Space::Local,
                "param" => space = Space::Param,
                // Which cache, and in which order to others: memory here is one, and in order.
                "cs" | "nc" | "volatile" | "relaxed" | "gpu" | "v2" | "v4" => {}
                other if Type::of(other).is_some() => {}
                other => return Err(format!(".{other} is not known here")),
            }
        }
        let [first, second] = terms else { return Err("not two operands".into()) };
        if base == "ld" {
            let to = elements(first).map(|term| self.register(term)).collect::<Outcome<_>>()?;
            return Ok(Operation::Load { space, of, to, address: self.address(second)? });
        }
        let from = elements(second).map(|term| self.operand(of, term)).collect::<Outcome<_>>()?;
        Ok(Operation::Store { space, of, address: self.address(first)?, from })
    }

    fn change_space(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        let [to, a] = terms else { return Err("not two operands".into()) };
        let (to, a) = (self.register(to)?, self.operand(Type::U64, a)?);
        let (from_generic, space) = match suffixes {
            ["to", space, "u64"] => (true, space),
            [space, "u64"] => (false, space),
            _ => return Err("not known here".into()),
        };
        let space = match *space {
            "global" => Space::Global,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            _ => return Err("not known here".into()),
        };
        Ok(match from_generic {
            true => Operation::FromGeneric { space, to, a },
            false => Operation::ToGeneric { space, to, a },
        })
    }

    fn pack_or_unpack(&self, of: Type, terms: &[Term<'_>]) -> Outcome<Operation> {
        let part = |parts: &[_]| match of.bytes() / parts.len().max(1) {
            2 => Ok(Type::U16),
            4 => Ok(Type::U32),
            _ => Err("parts of another size"),
        };
        match terms {
            [Term::List(parts), a] => {
                let register = |term: &Term<'_>| match term {
                    Term::Name("_") => Ok(None),
                    term => self.register(term).map(Some),
                };
                let to = parts.iter().map(register).collect::<Outcome<_>>()?;
                Ok(Operation::Unpack { to, part: part(parts)?, a: self.operand(of, a)? })
            }
            [to, Term::List(parts)] => {
                let part = part(parts)?;
                let parts =
                    parts.iter().map(|it| self.operand(part, it)).collect::<Outcome<_>>()?;
                Ok(Operation::Pack { to: self.register(to)?, parts, part })
            }
            _ => Err("not known here".into()),
        }
    }

    fn convert(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        let [modifiers @ .., to, from] = suffixes else { return Err("not two types".into()) };
        let unknown = || "not known here".to_owned();
        let (to, from) = (Type::of(to).ok_or_else(unknown)?, Type::of(from).ok_or_else(unknown)?);
        let mut conversion = Conversion { to, from, integral: false, saturate: false };
        for modifier in modifiers {
            match *modifier {
                "rn" => {}
                "rzi" => conversion.integral = true,
                "sat" => conversion.saturate = true,
                _ => return Err(unknown()),
            }
        }
        let [register, a] = terms else { return Err("not two operands".into()) };
        Ok(Operation::Convert {
            conversion,
            to: self.register(register)?,
            a: self.operand(from, a)?,
        })
    }

    fn arithmetic(
        &self,
        base: &str,
        suffixes: &[&str],
        of: Type,
        terms: &[Term<'_>],
    ) -> Outcome<Operation> {
        let modifiers = &suffixes[..suffixes.len() - 1];
        let [to, terms @ ..] = terms else { return Err("no operands".into()) };
        let to = self.register(to)?;
        let operand = |term| self.operand(of, term);
        match (base, modifiers, terms) {
            ("setp", [comparison], [a, b]) => {
                let comparison = Comparison::of(comparison).ok_or("not known here")?;
                Ok(Operation::Compare { comparison, of, to, a: operand(a)?, b: operand(b)? })
            }
            ("selp", [], [a, b, predicate]) => {
                let predicate = self.operand(Type::Pred, predicate)?;
                Ok(Operation::Select { to, a: operand(a)?, b: operand(b)?, predicate })
            }
            ("fma", ["rn" | "rm"], [a, b, c]) => {
                let operands = [operand(a)?, operand(b)?, operand(c)?];
                Ok(Operation::Fused { of, down: modifiers == ["rm"], to, operands })
            }
            ("mad", ["lo"], [a, b, c]) => {
                let operands = [operand(a)?, operand(b)?, operand(c)?];
                Ok(Operation::MultiplyAdd { of, to, operands })
            }
            ("prmt", [], [a, b, c]) => {
                Ok(Operation::Permute { to, operands: [operand(a)?, operand(b)?, operand(c)?] })
            }
            (_, _, [a]) => {
                let operation = unary(base, modifiers).ok_or("not known here")?;
                Ok(Operation::Unary { operation, of, to, a: operand(a)? })
            }
            (_, _, [a, b]) => {
                let operation = binary(base, modifiers).ok_or("not known here")?;
                let is_shift = matches!(operation, Binary::ShiftLeft | Binary::ShiftRight);
                let b = self.operand(if is_shift { Type::U32 } else { of }, b)?;
                Ok(Operation::Binary { operation, of, to, a: operand(a)?, b })
            }
            _ => Err("not known here".into()),
        }
    }
}

/// Of a vector, or the one operand.
fn elements<'t, 'a>(term: &'t Term<'a>) -> impl Iterator<Item = &'t Term<'a>> {
    let elements = match term {
        Term::List(elements) => &elements[..],
        one => std::slice::from_ref(one),
    };
    elements.iter()
}

fn unary(base: &str, modifiers: &[&str]) -> Option<Unary> {
    Some(match (base, modifiers) {
        ("mov", []) => Unary::Move,
        ("not", []) => Unary::Not,
        ("neg", []) => Unary::Neg,
        ("abs", []) => Unary::Abs,
        ("popc", []) => Unary::PopulationCount,
        ("brev", []) => Unary::ReverseBits,
        ("bfind", ["shiftamt"]) => Unary::FindShift,
        ("sqrt", ["rn"]) => Unary::Sqrt,
        ("rcp", ["rn"] | ["approx", "ftz"]) => Unary::Reciprocal,
        ("ex2", ["approx", "ftz"]) => Unary::Exp2,
        _ => return None,
    })
}

fn binary(base: &str, modifiers: &[&str]) -> Option<Binary> {
    Some(match (base, modifiers) {
        ("add", [] | ["rn"]) => Binary::Add,
        ("sub", [] | ["rn"]) => Binary::Sub,
        ("mul", [] | ["rn"] | ["lo"]) => Binary::Mul,
        ("mul", ["wide"]) => Binary::MulWide,
        ("mul", ["hi"]) => Binary::MulHigh,
        ("div", [] | ["rn"]) => Binary::Div,
        ("rem", []) => Binary::Rem,
        ("min", []) => Binary::Min,
        ("max", []) => Binary::Max,
        ("max", ["NaN"]) => Binary::MaxNan,
        ("and", []) => Binary::And,
        ("or", []) => Binary::Or,
        ("xor", []) => Binary::Xor,
        ("shl", []) => Binary::ShiftLeft,
        ("shr", []) => Binary::ShiftRight,
        _ => return None,
    })
}
