//! From [`Text`](crate::text::Text) to [`Module`]: what names stand for, and where things lie.

mod opcodes;

use crate::program::{
    Address, Function, Instruction, Module, Operand, Operation, Program, Register, Special,
};
use crate::text::{FunctionText, Line, Statement, Term, Text, Variable, parse};
use crate::value::{Conversion, Type};
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
}
